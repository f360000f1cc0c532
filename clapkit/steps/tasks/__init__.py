"""The tasks of ``clapkit eval``, one file each: ``build()`` gives a ``clapkit.steps.evaluation.result.Task``.

The name of a task is that of its file, with hyphens: ``zero_shot.py`` is ``--tasks zero-shot``.
"""
