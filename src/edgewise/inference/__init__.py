"""Running a plan together: profiles in, answers out, by the deadline whatever dies.

    profiler.py     measures segments, codecs and overhead of a graph on this node      -> planning's `Profile`
    session.py      one request as a pure step: deadline, hedge, fallback                read this first
    serving.py      the device's `Server`: prepare, activate, infer                      effects of `session.py`
    hosting.py      the edge's and cloud's `StageHost`: answers `stage` queries
    stages.py       one ONNX Runtime session per segment, with time dilation; what is raw stays raw
    exits.py        when to leave early; thresholds with a finite-sample bound
    measure.py      predicted against measured

A request: `serving` → `request` (drives `session`) → `worker` → `stages` → `cuts` → `hosting` on the next tier. The HTTP
door is `service/open_inference.py`. Import from the modules; nothing heavy is imported here.
"""
