"""Interfaces that never lead to another host."""

BRIDGES = (
    "docker*", "br-*", "veth*", "virbr*", "vnet*", "cni*", "flannel*", "cali*", "podman*", "lxc*",
    "lxdbr*", "kube*",
)  # fmt: skip
"""Names that container and virtual machine software gives its interfaces: other hosts cannot reach
what is announced there (seen in the field: exo 858, edgemesh 446)."""
