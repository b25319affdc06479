"""The work of ``training_work`` as an application of Flower."""
