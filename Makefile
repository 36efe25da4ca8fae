# make demo   speak a corpus, train on it with the sampled and the exact loss, transcribe   (8 minutes on 2 cores, half of them the install);
#             DEMO=tdt: a TDT model
# make test   lint and every test that needs no GPU, with NeMo 3.0.0; those with NeMo again with 2.7.3 (25 minutes)
# Each makes its own environments first: $(VENV), and for NeMo 2.7.3 $(VENV2); the constraints pin what CI ran.

DEMO ?= rnnt
PYTHON ?= python3
VENV ?= .venv
VENV2 ?= .venv-nemo2
RUN = . $(VENV)/bin/activate &&
RUN2 = . $(VENV2)/bin/activate &&
PYTEST = OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -q --durations 15

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(RUN) python examples/demo/demo.py --model $(DEMO)

# Exported files are opened by both: OTHER_PYTHON is the other one's.
test: $(VENV)/.dev $(VENV2)/.dev
	$(RUN) ruff check .
	$(RUN) OTHER_PYTHON=$(abspath $(VENV2))/bin/python $(PYTEST)
	$(RUN2) OTHER_PYTHON=$(abspath $(VENV))/bin/python $(PYTEST) tests/models tests/modules tests/examples

$(VENV)/.%: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# What we need, but not us: here our files open as at other people's. The tests find the package in this folder.
$(VENV2)/.dev: setup.py constraints-nemo2.txt
	$(PYTHON) -m venv $(VENV2)
	$(RUN2) python -m pip install --quiet --disable-pip-version-check -c constraints-nemo2.txt -e '.[dev]'
	$(RUN2) python -m pip uninstall --quiet --yes nemo_sampled_rnnt
	touch $@

clean:
	rm -rf $(VENV) $(VENV2) demo_out
