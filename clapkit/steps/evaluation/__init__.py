"""What the tasks of an evaluation share: the embedded clips, their captions, and the shape of a result."""
