"""What a run runs on: devices and their mesh, processes, memory, signals, disks and pipes that
fail.
"""
