"""Agreement on who runs a job: one CASPaxos register per job, and the hints that keep it quiet.

Safety is in ``acceptor`` and ``proposer`` alone (Rystsov 2018, "CASPaxos: Replicated State Machines
without logs", arXiv:1802.07000). ``order``, ``committee`` and ``lease`` only save duplicate work.
"""
