"""The loop that joins training and serving: drift, hard examples, labels, gate, rollout. Pure steps; drivers act.

How to use::

    state = loop.start(LoopSettings(stages=((a,), (b,))), version=1, reference={0: calibration_confidences})
    state, actions = loop.step(state, ConfidenceObserved(node, confidence, exit=0, time=now))   # per answered request
    # CollectExamples -> devices keep hard_examples.step(...); report ExamplesHeld(num, now)
    # LabelExamples   -> devices ask label_source("feedback"); report LabelsReady(num, "feedback", now)
    # StartTraining   -> a federated run from `parent`; report TrainingFinished(version, now)
    # JudgeVersion    -> gate.improves(...); report GateJudged(version, result.passed, result.reason, now)
    # InstallVersion / RevertVersion -> order to a node; its answer is NodeUpdated(node, version, now)
    # nodes report HealthObserved; WakeAt -> TimePassed; EndTurn says how the turn ended
    state.timeline                                                                               # for the report

Each part also works alone: `drift.step`, `gate.compare`, `rollout.step`.
"""
