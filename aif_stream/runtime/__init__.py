"""The composition root of ``aif up``: embedded servers, one process per role, a catalogue, live traffic."""
