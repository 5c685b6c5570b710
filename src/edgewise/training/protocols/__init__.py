"""When the parts are called: each protocol is `step(state, event) -> (state, actions)` over values that serialise.

Flat (`synchronous.py`), on a coordinator:

    step = make_step(make_algorithm(config.algorithm), blobs)     # blobs: Mapping[Digest, bytes]
    state, actions = step(None, RunStarted(config, present))      # log the event, step, then act
    state = replay(step, map(decode_event, log), blobs)           # after a crash: the identical state
    actions = resume(state)                                       # what is outstanding

Over edges: `make_cloud_step`, `replay_cloud`, `resume_cloud` (`hierarchical.py`) on the cloud, which starts with
`HierarchyStarted`; `make_edge_step`, `replay_edge`, `resume_edge` (`regional.py`) on every edge.

Rules of a driver: store a blob, then append the event that names it, then step, then acknowledge (`AcceptUpdate`,
`AcceptSum`); `StoreModel` before the next event; a refusal with reason `duplicate` is an acknowledgement. Clients and
edges repeat what was not acknowledged. `messages.py` and `regions.py` have every event and action, `event_log.py` the
log's format, `driver.py` and `hierarchy_driver.py` the smallest drivers.
"""
