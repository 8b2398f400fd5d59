"""From pictures to results: reading, network passes, tiles, masks, drawing and files."""
