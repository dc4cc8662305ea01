"""Pages about regions that were bought: a review page to look at each of them, and what a whole choice adds up to.

Both are one self-contained HTML file that asks no network for anything. Nothing here imports torch.
"""
