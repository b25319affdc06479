"""Federated jobs: what the register holds, how a round runs, who aggregates when the aggregator is gone."""
