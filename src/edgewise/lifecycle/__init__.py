"""The loop that joins training and serving: drift, hard examples, labels, gate, rollout. Pure steps; drivers act.

How to use::

    state = loop.start(LoopSettings(min_labels=40), version=1)
    state, actions = loop.step(state, DriftNoticed("drift: ...", now))       # drift.DriftState.finding says so
    # CountExamples -> what devices hold of hard_examples.step(...): ExamplesCounted(num, num_labelled, now)
    # TryFormer     -> former.choose_former(pairs on those examples): FormerTried(version or 0, reason, now)
    # StartTraining -> a federated run from `parent`: TrainingFinished(version, now)
    # EvaluateVersion -> version_gate.improves(...): GateEvaluated(version, result.passed, result.reason, now)
    # RollOut       -> rollout.step(...) over the devices: RolloutEnded(version, completed, cause, now)
    # EndTurn says how the turn ended
    state.timeline

Each part also works alone: `harm.labelled`, `change.step`, `version_gate.compare`, `rollout.step`.
"""
