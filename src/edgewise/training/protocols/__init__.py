"""When the parts are called: each protocol is `step(state, event) -> (state, actions)`.

    step = make_step(make_algorithm(config.algorithm), blobs)         # blobs: Mapping[Digest, bytes]
    state, actions = step(None, RunStarted(config, present))          # log the event first, then act
    state = replay(step, (decode_event(row) for row in log), blobs)   # after a crash
    actions = resume(state)                                           # what is outstanding

`messages.py` has every event and action; read `synchronous.py` first, `driver.py` for the smallest driver.
"""
