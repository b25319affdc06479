"""What every other package stands on: ids, the machine protocol, randomness, the error tree."""
