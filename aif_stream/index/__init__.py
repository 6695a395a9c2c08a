"""The N2O index: what nearline wrote, as the online side reads it. The only room that speaks to Redis."""
