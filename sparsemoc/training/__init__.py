"""What the training recipe adds around attention: schedule, outer router, monitor."""
