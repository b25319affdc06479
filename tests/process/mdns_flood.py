"""Announces sites that do not exist, as fast as it is told to. Run it in a network of its own.

python mdns_flood.py CLUSTER_HEX INTERFACE_ADDRESS[,ADDRESS...] COUNT PER_SECOND [REPEAT_S]
"""

import ipaddress
import random
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from zeroconf import DNSOutgoing  # type: ignore[attr-defined]
from zeroconf.asyncio import AsyncServiceInfo

from agent.drivers.mdns import SERVICE
from agent.foundation.ids import SiteId
from agent.wire.advert import Advert

RESPONSE = 0x8400


def packet(cluster: str, rng: random.Random, network: ipaddress.IPv4Network) -> bytes:
    advert = Advert(cluster, SiteId(rng.randbytes(32)), rng.randrange(2**40), 7412)
    address = network[rng.randrange(1024, network.num_addresses - 1)]
    info = AsyncServiceInfo(
        SERVICE, f"{advert.instance}.{SERVICE}", port=7411, properties=advert.pack(),
        server=f"atoll-{advert.instance}.local.", parsed_addresses=[str(address)],
    )  # fmt: skip
    out = DNSOutgoing(RESPONSE)
    for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
        out.add_answer_at_time(record, 0)
    return bytes(out.packets()[0])


def main(cluster: str, addresses: str, count: int, per_s: float, repeat_s: float = 0.0) -> None:
    rng = random.Random(1)
    network = ipaddress.ip_network("10.98.0.0/16")
    assert isinstance(network, ipaddress.IPv4Network)
    sockets = []
    for address in addresses.split(","):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((address, 5353))
        one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        sockets.append(one)
    packets = [packet(cluster, rng, network) for _ in range(count)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    until = time.monotonic() + repeat_s
    while True:
        began = time.monotonic()
        for number, data in enumerate(packets):
            sockets[number % len(sockets)].sendto(data, ("224.0.0.251", 5353))
            ahead_s = number / per_s - (time.monotonic() - began)
            if ahead_s > 0.001:
                time.sleep(ahead_s)
        if time.monotonic() >= until:
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]),
         float(sys.argv[5]) if len(sys.argv) > 5 else 0.0)  # fmt: skip
