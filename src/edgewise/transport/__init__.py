"""Moves messages between nodes: frames, key layout, loopback, Zenoh, bulk transfer by digest.

    settings = ZenohSettings(
        node=node_id("device-1"), generation=generation, connect=("tls/10.0.0.2:7447",), tls=TlsFiles.of("device-1/")
    )
    async with await open_zenoh(settings) as transport:                      # zenoh/zenoh_transport.py
        await transport.declare_presence(keys.alive(Tier.DEVICE, "device-1", generation))
        await transport.serve(keys.service("device-1", "info"), handler)     # handler: Frame -> Frame, async
        answer = await transport.query(keys.service("edge-1", "stage"), frame, timeout_s=0.5)
        await fetch_blob(transport, keys.service("edge-1", "blob"), digest, size_bytes, blobs)     # bulk/fetch.py

The contract is `transport.py`; `loopback.py` is its smallest implementation, `zenoh/zenoh_transport.py` the one of a
fleet. Every frame passes its node's `FrameGuard` (`guard.py`). A query sent in the first milliseconds after opening may
be Unreachable, because the services of other nodes are not yet known. Nothing is imported here: Zenoh is loaded only
by code that opens a session.
"""
