"""What one recipe says, and the contract that a stage keeps to be named in one."""
