"""What every module of ministudio stands on; threestudio's names at threestudio's places."""
