"""Side-by-side timings against the peer in the same run; `make bench` prints all tables."""
