"""How messages move: frames, key layout, loopback, zenoh, shaped links, bulk by digest.

    settings = ZenohSettings(node_id("device-1"), epoch, connect=("tls/10.0.0.2:7447",), tls=TlsFiles.of("device-1/"))
    async with await open_zenoh(settings) as transport:                      # zenoh.py; says why if nobody answers
        await transport.declare_presence(keys.alive(Tier.DEVICE, "device-1", epoch))
        await transport.serve(keys.service("device-1", "info"), handler)     # handler: Frame -> Frame, async
        answer = await transport.query(keys.service("edge-1", "stage"), frame, timeout_s=0.5)
        await fetch_blob(transport, keys.service("edge-1", "blob"), digest, size_bytes, blobs)     # bulk.py

The contract is `transport.py`; `loopback.py` is its smallest implementation, `zenoh.py` the real one, and a Zenoh
session that dials a link of `link.py` is the shaped one. Every frame passes its node's `door.py`. What a client
asks in the first milliseconds after opening may be Unreachable, until the services of others are known to it.
Nothing is imported here: Zenoh is loaded only by who opens a session.
"""
