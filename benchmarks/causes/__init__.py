"""Whether causes are told apart: each class of fault is really made, and what is said of it is counted."""
