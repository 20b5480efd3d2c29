"""Schemas: the types on the wire, their versions, the document of all of them, and what a change of one breaks."""
