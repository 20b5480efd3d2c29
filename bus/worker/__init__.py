"""Workers: live instances of agents. They take as much work as they have room for, and end each attempt in the log."""
