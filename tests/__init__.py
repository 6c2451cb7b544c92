"""Tests, in the tree's own layout; support/ holds builders and servers, integration/ needs real ones."""
