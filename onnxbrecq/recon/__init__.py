"""Block reconstruction: the only room that owns torch."""
