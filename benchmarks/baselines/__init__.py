"""What a user would run today instead of scanvit, written as such scripts are written. They share nothing with scanvit but weights, files and order."""
