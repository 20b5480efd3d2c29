"""`python -m bus` is the command `phasebus`. Found by its entry point: the library imports nothing of the console."""

import sys
from importlib.metadata import entry_points

if __name__ == "__main__":
    [command] = entry_points(group="console_scripts", name="phasebus")
    sys.exit(command.load()())
