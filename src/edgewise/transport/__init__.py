"""How messages move: frames, key layout, loopback, zenoh, shaped links, bulk by digest."""
