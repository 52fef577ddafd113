from lbr_st.stages.learn import *  # temporary
