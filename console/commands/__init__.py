"""One module per noun of the command line. None imports the bus before its command runs."""
