"""What a frozen backbone's features know, found with as little training as can be."""
