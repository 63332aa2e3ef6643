"""What each part of the method buys, one factor at a time."""
