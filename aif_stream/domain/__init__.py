"""The words of the system: frozen data and pure rules. No I/O, no torch."""
