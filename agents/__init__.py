"""What the bus ships in processes of its own: supervisor and clerk."""
