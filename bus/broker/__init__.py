"""The broker: nats-server as this library speaks with it, and one of our own.

Connections that nothing received can stop; messages pulled by credit.
"""
