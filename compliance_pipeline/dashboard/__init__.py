"""The page that analysts open: reads published snapshots, never the warehouse that runs write to."""
