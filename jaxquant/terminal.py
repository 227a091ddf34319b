"""What stands in the last line of a terminal, a bar of progress for instance, gives way to what is written next."""

CLEARED = '\r\x1b[K'  # back to the start of the line, all of it erased
