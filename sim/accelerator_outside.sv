// SPDX-License-Identifier: Apache-2.0
// The accelerator between an AXI slave and a master that are not ours: wires, which tb_accelerator_outside
// drives. The slave wants ids; a master that has none always asks with id 0.
//
// `SIZE and `AXIL_BITS, the width of an AXI4-Lite address, are defined by who compiles this.
module accelerator_outside;
  logic clk = 0, rst = 1, irq;

  logic m_axi_arid, m_axi_rid;
  logic [63:0] m_axi_araddr, araddr;
  logic [7:0] m_axi_arlen;
  logic [2:0] m_axi_arsize, m_axi_arprot;
  logic [1:0] m_axi_arburst, m_axi_rresp;
  logic [3:0] m_axi_arcache;
  logic m_axi_arvalid, m_axi_arready, m_axi_rvalid, m_axi_rready, m_axi_rlast;
  logic [8*`SIZE-1:0] m_axi_rdata;

  logic [`AXIL_BITS-1:0] s_axil_awaddr, s_axil_araddr;
  logic [31:0] s_axil_wdata, s_axil_rdata;
  logic [3:0] s_axil_wstrb;
  logic [1:0] s_axil_bresp, s_axil_rresp;
  logic s_axil_awvalid, s_axil_awready, s_axil_wvalid, s_axil_wready, s_axil_bvalid, s_axil_bready;
  logic s_axil_arvalid, s_axil_arready, s_axil_rvalid, s_axil_rready;

  // Bits that are set in every address: a design that breaks the rule of 4 KiB, to see that it is noticed.
  logic [63:0] breach = 0;

  assign m_axi_arid = 0;
  assign m_axi_araddr = araddr | breach;

  qvit_accelerator dut (.m_axi_araddr(araddr), .*);
endmodule
