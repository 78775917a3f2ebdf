import socket

from pipelines.network import interface_of


def test_the_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("127.0.0.1") in [name for _, name in socket.if_nameindex()]
    assert interface_of("192.0.2.254") is None  # an address for documentation, nobody's
