"""What a run will take: of its models, its memory, disk, jobs and time, before anything is fetched but configs."""
