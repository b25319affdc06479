"""The process between applications, members and the model worker: HTTP in, tensors on."""
