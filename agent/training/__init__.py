"""Local training as the control process sees it: the contract with the trainer. No PyTorch."""
