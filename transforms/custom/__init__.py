"""Users' own transforms: what they declare, how their code is called, and what becomes of what it returns or raises."""
