"""What each command is called, what it takes and what its help says; one module for each family of commands."""
