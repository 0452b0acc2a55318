"""Iterative finetuning, studied: does a seeded trait amplify when models train on their predecessors' outputs?"""
