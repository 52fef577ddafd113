# lbr-st on a CPU. Written to be built anywhere; checked with hadolint, not yet built by its authors.
#
#   docker build -t lbr-st .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -v lbr-st-cache:/cache lbr-st build lbr-chem
#
FROM python:3.13-slim

# Downloads and conversions are kept in a volume that any user can write to.
RUN mkdir -m 1777 /cache
ENV LBR_ST_CACHE=/cache/lbr-st HF_HOME=/cache/huggingface HOME=/cache

WORKDIR /opt/lbr-st
COPY constraints.txt ./
# PyTorch's own index has wheels without the libraries of a GPU, which are several gigabytes.
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY lbr_st lbr_st
RUN pip install --no-cache-dir -c constraints.txt ".[chem,eval,documents]"

WORKDIR /work
ENTRYPOINT ["lbr-st"]
CMD ["--help"]
