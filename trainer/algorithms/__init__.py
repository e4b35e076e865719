"""The learning algorithms, one file each: its frozen configuration on top, then what it does with pairs and answers."""
