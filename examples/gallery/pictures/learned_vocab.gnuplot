# SPDX-License-Identifier: MIT
table = tables.'/learned_vocab.tsv'
title = 'LearnedVocab: dim = 64, max_seq_len = 64'
names = '"at init" "trained on windows of 64 characters"'
tokens = 64
features = 64
feature = 'feature'
value = 'added to x'
eval colours(3.0)
load 'examples/gallery/features.gnuplot'
