from lbr_st.stages.training import *  # temporary
