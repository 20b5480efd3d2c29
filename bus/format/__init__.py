"""The format of what is on the wire: names and subjects, envelopes, types with their versions, payloads of any size."""
