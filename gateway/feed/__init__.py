"""The live feed: sends events of jobs to browsers, each row once and in order."""
